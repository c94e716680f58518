"""The recipes that ship with Coppice: TOML files beside this one."""
