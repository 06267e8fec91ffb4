"""Tasks: annotations into records, in the unified formats of Mini-InternVL's transfer to a domain. A file a format."""
