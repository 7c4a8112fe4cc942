package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/gatemesh/gatemesh/gateway"
)

// The exit statuses. Help and doc.go name them; scripts rely on them.
const (
	exitOK          = 0 // done
	exitFailed      = 1 // it did not work
	exitUsage       = 2 // bad flags, bad input, bad configuration
	exitTimeout     = 3 // waited in vain; what is known was printed
	exitUnavailable = 4 // the gateway, or the store behind it, cannot be reached now
)

// exitError is an error that knows its exit status. Its text is one line and names the
// remedy where there is one.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func failf(code int, format string, args ...any) error {
	return &exitError{code, fmt.Errorf(format, args...)}
}

// errQuiet ends a command with a status after everything was said already.
var errQuiet = errors.New("")

func quiet(code int) error { return &exitError{code, errQuiet} }

// exitCode is the status for err. Everything that a command returns by itself carries its
// status (see body), so a bare error can only come from cobra: usage.
func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	if e := (*exitError)(nil); errors.As(err, &e) {
		return e.code
	}
	return exitUsage
}

// failed gives a plain error of a command's body its status.
func failed(err error) error {
	var known *exitError
	var config *gateway.ConfigError
	switch {
	case err == nil, errors.As(err, &known):
		return err
	case errors.As(err, &config):
		return &exitError{exitUsage, err}
	case errors.Is(err, context.Canceled):
		return quiet(exitFailed)
	}
	return &exitError{exitFailed, err}
}

// report prints an error: one line, or one for each problem of a configuration.
func report(w io.Writer, err error) {
	if errors.Is(err, errQuiet) {
		return
	}
	for line := range strings.SplitSeq(strings.TrimSpace(err.Error()), "\n") {
		fmt.Fprintf(w, "gatemesh: %s\n", printable(line))
	}
}
