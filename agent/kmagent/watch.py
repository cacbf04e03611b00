"""News from etcd: what changes there wakes whoever would have to look again and again otherwise.

The API server's objects are among it: it keeps them below `/registry/`, by group, kind and name. What they say is asked of the
API; that they changed is heard here. Who hears nothing, because those places are others one day, still looks now and then.
"""

import asyncio
import contextlib
import logging

from kmagent import candidates
from kmagent.candidates import Report
from kmagent.etcd import Etcd
from kmagent.ledger import REPORTS
from kmagent.membership import OPERATION
from kmagent.mesh import Mesh
from kmagent.state import State

log = logging.getLogger(__name__)

PREFIXES = (
    "/kubermesh/",
    "/registry/kubermesh.io/meshnodes/",
    "/registry/certificatesigningrequests/",
    "/registry/minions/",
    "/registry/configmaps/kube-system/kubermesh-control-plane",
)
AGAIN_S = 1.0


class Watch:
    """Wakes the mesh's listeners; `works` tells whether it would hear of news."""

    def __init__(self, etcd: Etcd, mesh: Mesh) -> None:
        self._etcd, self._mesh = etcd, mesh
        self._reports: dict[str, Report] = {}
        self.works = False

    @property
    def news(self) -> asyncio.Event:
        """The event of the next news: to be taken before looking."""
        return self._mesh.news

    async def run(self, state: State, scale: float) -> None:
        """Watch the local member, until cancelled."""
        while True:
            await state.wait_for("etcd")
            self._reports.clear()
            try:
                async with contextlib.aclosing(self._etcd.watch(PREFIXES)) as heard:
                    async for changes in heard:
                        news = [key for key, text in changes.items() if self.is_news(key, text)]
                        # What happened before it began was heard by nobody.
                        if news or not self.works:
                            self.works = True
                            self._mesh.wake()
            except OSError as error:
                log.debug("%s", error)
            self.works = False
            await asyncio.sleep(AGAIN_S * scale)

    def is_news(self, key: str, text: str) -> bool:
        """Tell whether somebody has to look: not for a node that says again that all is as it was.

        What the leading node notes of its own operation is for the one after it, and would wake it again and again.
        """
        if not key.startswith(REPORTS):
            return key != OPERATION
        try:
            report = candidates.from_text(text)
        except ValueError:
            self._reports.pop(key, None)
            return True
        before = self._reports.get(key)
        self._reports[key] = report
        return before is None or (report.neighbours, report.offers) != (before.neighbours, before.offers)
