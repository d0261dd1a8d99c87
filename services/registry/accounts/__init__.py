"""Who may call: accounts, API keys, the operator key, enrolment keys, and the signing keys that devices are told to trust."""
