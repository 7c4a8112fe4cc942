package bustest

// secrets are what must hold where payloads are encrypted.
var secrets = []contract{}
