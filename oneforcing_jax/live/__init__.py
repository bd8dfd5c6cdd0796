"""Videos that are watched while they are made: sessions, one queue for the device, a server and its page."""
