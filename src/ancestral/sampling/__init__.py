"""Drawing and editing with a run."""
