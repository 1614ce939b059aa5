"""What the panel tells the user."""

import html
import time

import qt
from slicer.i18n import tr as _


class Message:
    """A sentence. `topic` names what it is about: a later one on the same topic replaces it."""

    def __init__(self, text, warning, topic="", folder=""):
        self.text, self.warning, self.topic, self.folder = text, warning, topic, folder
        self.since = time.monotonic()
        self.about = None  # the prompts it is about, when it is about prompts; it goes when they change

    @property
    def html(self):
        text = html.escape(self.text)
        if self.folder:
            address = qt.QUrl.fromLocalFile(self.folder).toString()
            text += ' <a href="{}">{}</a>'.format(html.escape(address), _("Open the folder"))
        return text
