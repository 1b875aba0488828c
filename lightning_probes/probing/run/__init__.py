"""What a probe knows of a run. Only this room, and the twin's view of it, knows a Trainer."""
