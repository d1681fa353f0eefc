"""What a COMMIT does, as code of an application that says what it expects.

Each case takes an engine and holds on real connections as in a sandbox.
"""
