"""`dynammo-site`: the command line of a site's engineer."""

from __future__ import annotations

from client.commands.approve import approve
from client.commands.audit import audit
from client.commands.init import init
from client.commands.inspect import inspect
from client.commands.memory import memory
from client.commands.predict import predict
from client.commands.start import start
from client.doctor.doctor import doctor
from dynammo_core.support.terminal import command_line

app = command_line(
    "Run a hospital's site of a federation: set it up, check it, start it, approve what runs, look into its memory, "
    "see what left, predict."
)
app.command()(init)
app.command()(doctor)
app.command()(inspect)
app.command()(start)
app.command()(approve)
app.add_typer(memory, name="memory")
app.add_typer(audit, name="audit")
app.command()(predict)
