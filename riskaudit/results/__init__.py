"""The result of an audit as typed rows: pydantic models, versioned, JSON in and out. Nothing here needs torch."""

from riskaudit.results.audit import *
from riskaudit.results.base import *
from riskaudit.results.calibration import *
from riskaudit.results.groups import *
from riskaudit.results.studies import *
from riskaudit.results.subject import *
from riskaudit.results.texts import *
from riskaudit.results.words import *
