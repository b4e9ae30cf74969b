"""A package, so that tests share helpers by plain imports (`from tests.stand_in import ...`)."""
