package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// proof is the file that a proof leaves behind (bin/proof/NAME.json).
type proof struct {
	Name    string  `json:"name"`
	Commit  string  `json:"commit"`
	OK      bool    `json:"ok"`
	Seconds float64 `json:"seconds"`
	Figures any     `json:"figures"`
}

func writeProof(path string, p proof) error {
	b, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return fmt.Errorf("encode proof: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write proof: %w", err)
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write proof: %w", err)
	}
	return nil
}
