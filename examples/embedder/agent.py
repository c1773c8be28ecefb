"""An agent that turns texts into vectors, several at once, as a model would like them."""

from antiphon import Agent, PermanentFailure, TaskFailure
from pydantic import BaseModel, Field

agent = Agent("embedder")


class Text(BaseModel):
    text: str = Field(min_length=1, max_length=10_000)


class Vector(BaseModel):
    values: list[float]


@agent.batch("text.embed@1", max_size=16, effect="pure", idempotent=True)
async def embed(texts: list[Text]) -> list[Vector | TaskFailure]:
    """Counts letters: similar words are near each other."""
    return [vector_of(one.text) for one in texts]


def vector_of(text: str) -> Vector | TaskFailure:
    letters = [one for one in text.lower() if "a" <= one <= "z"]
    if not letters:
        return PermanentFailure("there is no letter in it", "no_letters")
    return Vector(values=[letters.count(chr(code)) / len(letters) for code in range(ord("a"), ord("z") + 1)])


if __name__ == "__main__":
    agent.run()
