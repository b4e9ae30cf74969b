"""The ceremony: an HSM is founded, its keys pass to another one, and are closed; on its host, by people.

papers.py    what is written: the record, keys on their way, a transport key, how far it has come
party.py     the UKeys of the people who are there
bench.py     the HSM and its PINs, for the length of a step
founding.py  from a blank token to a record
passage.py   keys to another token, from there, and closed
checking.py  a running HSM against its record
answers.py   what people would be asked, written down before

Each step looks at what stands: whatever was cut short is done once more, from its beginning.
"""
