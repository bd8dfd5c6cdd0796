"""One page about runs and studies, in one HTML file that needs nothing beside it."""
