"""Programs that use Latebind as its users do: through the command line, the SDK and the HTTP API only."""
