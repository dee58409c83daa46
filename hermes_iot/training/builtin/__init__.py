"""The tasks that come with hermes-iot, each written the way a user writes one: two plain functions in a file."""
