//go:build race

package main

// raceEnabled: the tests were built with -race, and so is the binary that they run.
const raceEnabled = true
