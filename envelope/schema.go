package envelope

import (
	"bytes"
	_ "embed"
)

//go:embed schema/v1.json
var schema []byte

// Schema returns the JSON Schema (draft 2020-12) of the envelope, for senders that are
// not written in Go; its $defs/delivery describes a [Delivery].
func Schema() []byte { return bytes.Clone(schema) }
