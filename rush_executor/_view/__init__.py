"""The view: what users look at. Reads only, never writes."""
