"""Options that all commands share."""

from typing import Annotated

from cyclopts import Parameter

FLAG = Parameter(negative="", show_default=False)
Debug = Annotated[bool, FLAG, Parameter(help="show the traceback of an error")]
Json = Annotated[bool, FLAG, Parameter(name="--json", help="print JSON for machines")]
