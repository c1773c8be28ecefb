"""A team in one process: one capability finds facts, another writes from all that are there, whoever found them."""

from antiphon import Agent, TaskContext, entry_value

agent = Agent("team")


@agent.capability("facts.find@1", effect="write")
async def find(topic: str, ctx: TaskContext) -> int:
    """Shares what it finds, and answers the revision it is kept in."""
    return await ctx.context.put(f"facts/{topic}", {"topic": topic, "text": f"what is known of {topic}"})


@agent.capability("facts.report@1", effect="write")
async def report(title: str, ctx: TaskContext) -> list[str]:
    """Writes a report of every fact; a claim keeps a second reporter out meanwhile."""
    async with ctx.context.claim("report") as claim:
        facts = await ctx.context.list("facts/")
        texts = [str(entry_value(fact)["text"]) for fact in facts]
        await ctx.context.put("report", {"title": title, "texts": texts}, claim=claim)
    return texts


if __name__ == "__main__":
    agent.run()
