"""The smallest agent: one capability, whose schemas are taken from the annotations."""

from dataclasses import dataclass

from antiphon import Agent

agent = Agent("hello")


@dataclass
class Person:
    name: str


@agent.capability("hello.greet@1", effect="pure", idempotent=True)
async def greet(person: Person) -> str:
    """Greets a person by name."""
    return f"Hello, {person.name}!"


agent.run()
