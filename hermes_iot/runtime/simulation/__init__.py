"""A fleet in virtual time: the machines, codec and wire of the field, on a clock that jumps from event to event.

What is simulated is what surrounds the machines: boards that need so long for a mini-batch (`board`), links of so many
Mbit/s (`network`), and the broker's memory (`transport.memory`). What is decided and what travels is not: `core.Device`
and `core.Coordinator` are those that run on the boards, driven event by event as `runtime.device` and
`runtime.coordinator` drive them, and every byte counted is a byte that the codec made.

One seed makes the whole run. Nothing here reads a clock, starts a thread or touches a file.
"""
