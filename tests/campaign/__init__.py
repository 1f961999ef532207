"""The campaign: what a server must survive, as scenarios that each return one `Outcome`.

Short versions run with the tests, the whole of it with `make campaign`; docs/campaign.md says what each one does.
Everything runs against a real server process on a free port of this machine.
"""
