"""For users' own tests: a real mesh in the process of the test, whose agents are seen and can be made to fail.

    async with Mesh() as mesh:
        greeter = mesh.add(agent)
        greeter.fail("text.greet@1", attempts=2)
        async with mesh.hurry():
            run = await mesh.client.submit(graph, {"name": "Ada"}, wait=True)
        assert [one.state for one in greeter.attempts()] == ["FAILED", "FAILED", "SUCCEEDED"]

With pytest and pytest-asyncio the mesh is a fixture: `pytest_plugins = ("antiphon.testing.fixtures",)`. It needs
`antiphon-server` (in a checkout: `pip install ./sdk/python .`), and says so.
"""

from ._instance import Instance
from ._journal import Attempted
from ._mesh import Mesh
from ._waiting import eventually

__all__ = ["Attempted", "Instance", "Mesh", "eventually"]
