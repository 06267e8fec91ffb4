"""What users type: one module a verb, imported only when it is the chosen one."""
