"""`dynammo-site`: the command line of a site's engineer."""

from __future__ import annotations

from client.approve_command import approve
from client.audit_command import audit
from client.doctor import doctor
from client.init_command import init
from client.memory_command import memory
from client.predict_command import predict
from client.start_command import start
from dynammo_core.terminal import command_line

app = command_line(
    "Run a hospital's site of a federation: set it up, check it, start it, approve what runs, look into its memory, "
    "see what left, predict."
)
app.command()(init)
app.command()(doctor)
app.command()(start)
app.command()(approve)
app.add_typer(memory, name="memory")
app.add_typer(audit, name="audit")
app.command()(predict)
