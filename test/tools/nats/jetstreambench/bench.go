package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// payload is the size of every measured message, in bytes.
	payload     = 1024
	workSubject = "work"
	doneSubject = "done"
	// ackWindow is how many messages may be with the receiver without an ack, and inFlight how many of
	// them its client asks for at once.
	ackWindow = 65536
	inFlight  = 4096
)

// bench is the sender and the receiver.
type bench struct {
	sender, receiver *nats.Conn
	from, to         jetstream.JetStream
	consuming        []jetstream.ConsumeContext
	acks             string // where the confirmations of acks arrive

	// one is set while messages go one by one: then a handler also publishes a receipt.
	one                      atomic.Bool
	delivered, knows, acked1 chan time.Time
	acked, target            atomic.Int64
	all                      chan struct{}
	failed                   chan error
}

func newBench(ctx context.Context, urls []string) (_ *bench, err error) {
	b := &bench{delivered: make(chan time.Time, 1), knows: make(chan time.Time, 1), acked1: make(chan time.Time, 1),
		all: make(chan struct{}, 1), failed: make(chan error, 1)}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if b.sender, err = nats.Connect(urls[0]); err != nil {
		return nil, err
	}
	if b.receiver, err = nats.Connect(urls[1]); err != nil {
		return nil, err
	}
	if b.from, err = jetstream.New(b.sender, jetstream.WithPublishAsyncErrHandler(func(_ jetstream.JetStream, _ *nats.Msg, err error) { b.fail(err) })); err != nil {
		return nil, err
	}
	if b.to, err = jetstream.New(b.receiver); err != nil {
		return nil, err
	}
	for _, s := range []string{workSubject, doneSubject} {
		if _, err := b.from.CreateStream(ctx, jetstream.StreamConfig{Name: s, Subjects: []string{s}, Storage: jetstream.FileStorage, Replicas: nodes}); err != nil {
			return nil, fmt.Errorf("stream %s: %w", s, err)
		}
	}
	work, err := b.to.CreateConsumer(ctx, workSubject, jetstream.ConsumerConfig{Durable: "receiver", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: ackWindow})
	if err != nil {
		return nil, fmt.Errorf("consumer: %w", err)
	}
	b.acks = b.receiver.NewInbox()
	if _, err := b.receiver.Subscribe(b.acks, b.confirmed); err != nil {
		return nil, err
	}
	receiving, err := work.Consume(b.handle, jetstream.PullMaxMessages(inFlight))
	if err != nil {
		return nil, err
	}
	b.consuming = append(b.consuming, receiving)
	done, err := b.from.OrderedConsumer(ctx, doneSubject, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return nil, fmt.Errorf("receipts: %w", err)
	}
	knowing, err := done.Consume(func(jetstream.Msg) { b.knows <- time.Now() })
	if err != nil {
		return nil, err
	}
	b.consuming = append(b.consuming, knowing)
	return b, nil
}

func (b *bench) close() {
	for _, c := range b.consuming {
		c.Stop()
	}
	for _, nc := range []*nats.Conn{b.sender, b.receiver} {
		if nc != nil {
			nc.Close()
		}
	}
}

func (b *bench) fail(err error) {
	select {
	case b.failed <- err:
	default:
	}
}

// handle is the receiver's work: none, but for the ack and, one by one, the receipt.
func (b *bench) handle(m jetstream.Msg) {
	if b.one.Load() {
		b.delivered <- time.Now()
		if _, err := b.to.PublishAsync(doneSubject, m.Data()[:36]); err != nil {
			b.fail(err)
		}
	}
	// What DoubleAck does, without a goroutine that waits.
	if err := b.receiver.PublishMsg(&nats.Msg{Subject: m.Reply(), Reply: b.acks, Data: []byte("+ACK")}); err != nil {
		b.fail(err)
	}
}

// confirmed: the consumer's group agreed on an ack.
func (b *bench) confirmed(*nats.Msg) {
	if b.one.Load() {
		b.acked1 <- time.Now()
		return
	}
	if b.acked.Add(1) == b.target.Load() {
		b.all <- struct{}{}
	}
}

// latencies are milliseconds since before the publish, in the order of sending.
type latencies struct {
	Delivered []float64 `json:"delivered_ms"`
	Knows     []float64 `json:"knows_ms"`
	Acked     []float64 `json:"acked_ms"`
}

// latency sends n messages, each when all is known of the one before.
func (b *bench) latency(ctx context.Context, n int) (*latencies, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	b.one.Store(true)
	defer b.one.Store(false)
	l := &latencies{}
	for i := range n {
		begin := time.Now()
		since := func(at time.Time) float64 { return float64(at.Sub(begin).Microseconds()) / 1000 }
		published, err := b.from.PublishAsync(workSubject, text(i))
		if err != nil {
			return nil, err
		}
		stored := published.Ok()
		for range 4 {
			select {
			case <-stored:
				stored = nil
			case at := <-b.delivered:
				l.Delivered = append(l.Delivered, since(at))
			case at := <-b.knows:
				l.Knows = append(l.Knows, since(at))
			case at := <-b.acked1:
				l.Acked = append(l.Acked, since(at))
			case err := <-published.Err():
				return nil, err
			case err := <-b.failed:
				return nil, err
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
	return l, nil
}

type throughput struct {
	AckedPerS float64 `json:"acked_per_s"`
}

// throughput publishes n messages with at most window of them unconfirmed, until the last ack is confirmed.
func (b *bench) throughput(ctx context.Context, n, window int) (*throughput, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	b.acked.Store(0)
	b.target.Store(int64(n))
	// A client of its own window; it stalls the publisher, it never drops.
	js, err := jetstream.New(b.sender, jetstream.WithPublishAsyncMaxPending(window),
		jetstream.WithPublishAsyncErrHandler(func(_ jetstream.JetStream, _ *nats.Msg, err error) { b.fail(err) }))
	if err != nil {
		return nil, err
	}
	defer js.CleanupPublisher()
	begin := time.Now()
	go func() {
		for i := range n {
			for {
				_, err := js.PublishAsync(workSubject, text(i))
				if err == nil {
					break
				}
				// The window was full for as long as the client waits; the deadline above bounds it.
				if !errors.Is(err, jetstream.ErrTooManyStalledMsgs) || ctx.Err() != nil {
					b.fail(err)
					return
				}
			}
		}
	}()
	select {
	case <-b.all:
		return &throughput{AckedPerS: float64(n) / time.Since(begin).Seconds()}, nil
	case err := <-b.failed:
		return nil, err
	case <-ctx.Done():
		return nil, fmt.Errorf("%d of %d acked: %w", b.acked.Load(), n, ctx.Err())
	}
}

// text is a payload that no other message has.
func text(i int) []byte {
	p := make([]byte, payload)
	for k := range p {
		p[k] = 'a' + byte(k%26)
	}
	binary.BigEndian.PutUint64(p, uint64(i))
	return p
}
