"""How the shipped models of the shapes world are trained; nothing here runs in a study."""
