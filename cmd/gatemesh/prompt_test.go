package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestPrompt runs the demo in this process and types at it.
func TestPrompt(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	var out, errOut bytes.Buffer
	a := &app{in: strings.NewReader("agents\nhelp\n\nopen\nshow zzzz\nWhat does the node say, billy?\nquit\nnever read\n"), out: &out, err: &errOut, env: noEnv}
	d := &demo{a: a, opt: demoOptions{store: "local"}, p: a.printer(), dir: t.TempDir(), died: make(chan error, len(demoNames))}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	defer func() {
		if err := d.stop(); err != nil {
			t.Error(err)
		}
		for _, n := range d.nodes {
			n.client.close()
		}
	}()
	if err := d.startLocal(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.waitReady(ctx); err != nil {
		t.Fatal(err)
	}
	f, err := d.follow(ctx)
	if err != nil {
		t.Fatal(err)
	}
	d.feed = f
	d.stops = append(d.stops, func() error { f.stop(); return nil })
	if err := d.prompt(ctx); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ask> ", "bobby\tbobby-gateway\tactive", "type a question", d.nodes[0].addr + "/\n", "billy-gateway  acked", "Billy (on billy-gateway): "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if !strings.Contains(errOut.String(), `gatemesh: no message here ends in "zzzz"`) {
		t.Errorf("standard error: %s", errOut.String())
	}
}
