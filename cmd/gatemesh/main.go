package main

import (
	"os"
	"runtime/debug"

	"github.com/google/uuid"

	exectool "github.com/gatemesh/gatemesh/agent/command"
)

func main() {
	if exectool.Confined() {
		os.Exit(126)
	}
	tune()
	os.Exit(run(os.Args[1:], newApp()))
}

// tune trades memory for processor time: what a gateway allocates is mostly messages on their way through, and collecting that
// garbage at Go's default (whenever the heap has doubled) was a seventh of its work under load. GOGC says otherwise.
// Message ids are no secrets, so their random bits may be fetched in bulk.
func tune() {
	uuid.EnableRandPool()
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(300)
	}
}
