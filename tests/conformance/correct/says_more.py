"""A correct agent whose inputs have rules that no schema tells, and types that others read less strictly."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from enum import Enum

from antiphon import Agent, InvalidInput
from pydantic import BaseModel, model_validator

agent = Agent("picky")


@dataclass
class Moment:
    at: datetime


@agent.capability("moment.year@1", effect="pure", idempotent=True)
async def year(moment: Moment) -> int:
    return moment.at.year


class Pair(BaseModel):
    a: int
    b: float
    sure: bool
    tags: set[str] = set()


@agent.capability("pair.add@1", effect="pure", idempotent=True)
async def add(pair: Pair) -> float:
    return pair.a + pair.b


class When(BaseModel, strict=True):
    at: datetime


@agent.capability("when.month@1", effect="pure", idempotent=True)
async def month(when: When) -> int:
    return when.at.month


@agent.capability("iban.country@1", effect="pure", idempotent=True)
async def country(iban: str) -> str:
    if len(iban) < 15:
        raise InvalidInput("too short for an IBAN")
    return iban[:2]


class Board(Enum):
    NONE = "none"
    FULL = "full"


class Stay(BaseModel):
    arrival: date
    departure: date
    board: Board = Board.NONE

    @model_validator(mode="after")
    def _in_order(self) -> Stay:
        if self.departure <= self.arrival:
            raise ValueError("departure must be after arrival")
        return self


@agent.capability("stay.nights@1", effect="pure", idempotent=True)
async def nights(stay: Stay) -> int:
    return (stay.departure - stay.arrival).days


agent.run()
