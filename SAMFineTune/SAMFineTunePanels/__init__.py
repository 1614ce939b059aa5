"""The panel of the module SAMFineTune, a file a section. Nothing here is imported before the module is shown."""
