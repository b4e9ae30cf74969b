"""What Alembic runs around the migrations: on the caller's connection, in the caller's transaction."""

from alembic import context

from hsmd.store.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=True,  # SQLite can; Alembic thinks of its driver's own transactions
    render_as_batch=True,  # SQLite alters little in place
)
with context.begin_transaction():
    context.run_migrations()
