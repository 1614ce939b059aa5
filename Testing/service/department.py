"""A department's server that holds a cohort, as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.service.cohort_client import CohortPlace, ServedCohort, mirror
from SAMFineTuneLib.service.server_address import parse_address

TOKEN = "a-token-of-the-department"


class Department:
    """A server with a cohort; it can be killed, and started again at the same port."""

    def __init__(self, cohort: Cohort, home: Path) -> None:
        self.cohort, self._home, self._port = cohort, home, 0
        self.start()

    def start(self, *options: str) -> None:
        command = [sys.executable, "-m", "SAMFineTuneLib", "serve", "--port", str(self._port), "--cohort",
                   str(self.cohort.folder), *options]
        environment = os.environ | {"SAMFINETUNE_HOME": str(self._home), "SAMFINETUNE_TOKEN": TOKEN}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True,
                                        cwd=Path(__file__).parents[2])  # fmt: skip
        self.address = self.process.stdout.readline().split()[1]
        self._port = parse_address(self.address).port

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    @property
    def mirror(self) -> Path:
        """Of the cohort, on the client's computer."""
        return mirror(CohortPlace(self.address, self.cohort.folder.name))

    def client(self, token: str = TOKEN) -> ServedCohort:
        return ServedCohort(self.mirror, token)
