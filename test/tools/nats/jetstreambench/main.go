// Command jetstreambench measures three NATS servers with JetStream the way gatemesh bench measures
// three Consul servers, so that both can be compared in the same run.
//
//	jetstreambench [-synced] [-dir DIR]
//
// It starts three servers as three processes (itself, started again), as Consul runs as three, clustered on
// loopback, with their data in DIR; the clients are one more process, as gatemesh bench is. When all is
// ready it says so in one line of JSON on stdout. Then each line of JSON on stdin is one measurement
// and each line on stdout its answer, until stdin ends:
//
//	{"do": "latency", "messages": 50}                      one by one
//	{"do": "throughput", "messages": 20000, "senders": 1024}    all at once
//
// What is measured, where there was a choice the one that is better for NATS:
//
//   - One stream of three replicas on disk, limits retention (nothing is deleted while it is measured), one durable pull
//     consumer with explicit acks; payloads of 1 KiB, bare, without the headers that deduplication needs. Sender and receiver
//     are connected to different servers.
//   - Acked, for the throughput: the consumer's ack was itself confirmed (a double ack, what AckSync waits for), after its
//     group agreed. The sender knows nothing of it; gatemesh counts when the sender knows. Publishes and acks are
//     asynchronous, so that no goroutine waits for one round trip; at most "senders" publishes are unconfirmed.
//   - Sender knows, for the latency: the handler publishes a receipt into a second stream of three replicas, at the
//     same time as it acks, and the sender's ordered consumer has it. A stream's message reaches consumers when a majority has it.
//     Ack and receipt are two things here, and a crash can leave one of them; with gatemesh they are one transaction.
//   - -synced: every server syncs every write (sync_interval: always), as Consul does. Otherwise as shipped: a write is
//     on a majority's page caches when it is confirmed, and on disk within two minutes.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/nats-io/nats-server/v2/server"
)

// request is one line of stdin.
type request struct {
	Do       string `json:"do"`
	Messages int    `json:"messages"`
	Senders  int    `json:"senders"`
}

// ready is the first line of stdout.
type ready struct {
	Server string `json:"server"`
	Nodes  int    `json:"nodes"`
	Synced bool   `json:"synced"`
}

func main() {
	if os.Getenv(nodeEnv) != "" {
		if err := runNode(os.Getenv(nodeEnv), os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, "nats node:", err)
			os.Exit(1)
		}
		return
	}
	synced := flag.Bool("synced", false, "sync every write")
	dir := flag.String("dir", "", "where the servers keep their data; empty: a temporary directory")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *synced, *dir, os.Stdin, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "jetstreambench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, synced bool, dir string, in io.Reader, out io.Writer) (err error) {
	if dir == "" {
		if dir, err = os.MkdirTemp("", "gatemesh-nats-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	c, err := startCluster(ctx, dir, synced)
	if err != nil {
		return err
	}
	defer c.stop()
	b, err := newBench(ctx, c.urls)
	if err != nil {
		return err
	}
	defer b.close()
	enc := json.NewEncoder(out)
	if err := enc.Encode(ready{Server: server.VERSION, Nodes: len(c.urls), Synced: synced}); err != nil {
		return err
	}

	lines := make(chan []byte)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(in); s.Scan(); {
			select {
			case lines <- append([]byte(nil), s.Bytes()...):
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		var line []byte
		var ok bool
		select {
		case line, ok = <-lines:
		case <-ctx.Done():
		}
		if !ok {
			return nil
		}
		var r request
		if err := json.Unmarshal(line, &r); err != nil {
			return fmt.Errorf("request: %w", err)
		}
		if r.Messages <= 0 {
			return errors.New("request: messages must be 1 or more")
		}
		var answer any
		switch r.Do {
		case "latency":
			answer, err = b.latency(ctx, r.Messages)
		case "throughput":
			answer, err = b.throughput(ctx, r.Messages, max(1, r.Senders))
		default:
			return fmt.Errorf("request: do %q: want latency or throughput", r.Do)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", r.Do, err)
		}
		if err := enc.Encode(answer); err != nil {
			return err
		}
	}
}
