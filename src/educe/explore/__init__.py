"""The explorer: a local page over runs; `bundle` is its front end, and the report's as well."""
