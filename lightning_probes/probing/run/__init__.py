"""All that a probe knows of a run. Only this package and the twin's view of a Trainer know Lightning's Trainer."""
