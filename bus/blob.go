package bus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gatemesh/gatemesh/envelope"
)

const (
	// chunkBytes is the size of one chunk of a big payload, below what a store takes in one value.
	chunkBytes = 256 << 10
	// chunksAtOnce bounds the requests of one payload.
	chunksAtOnce = 4
	// resolvedBytes bounds the big payloads that are in memory for handlers at one time.
	resolvedBytes = 64 << 20
)

// blobAbout says whose chunks lie beside it.
type blobAbout struct {
	MessageID string          `json:"message_id"`
	To        string          `json:"to"`
	Size      int64           `json:"size"`
	SHA256    string          `json:"sha256"`
	Chunks    int             `json:"chunks"`
	CreatedAt envelope.Time   `json:"created_at"`
	TTL       envelope.Millis `json:"ttl"`
}

func chunksOf(size int64) int { return int((size + chunkBytes - 1) / chunkBytes) }

// putPayload stores a payload that does not travel in its envelope. It is there before anything
// names it; what a lost try leaves is written over or collected.
func (b *Bus) putPayload(ctx context.Context, s *envelope.Sealed) error {
	if !s.Claimed() {
		return nil
	}
	n, all := chunksOf(s.PayloadSize), s.Outside()
	about := mustEncode(blobAbout{s.MessageID, s.TargetAgent, s.PayloadSize, s.PayloadSHA256, n, s.CreatedAt, envelope.MillisOf(s.ExpiresAt().Sub(s.CreatedAt.Time))})
	if err := b.putBlob(ctx, blobAboutKey(s.SourceGateway, s.MessageID), about); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(chunksAtOnce)
	for i := range n {
		g.Go(func() error {
			part := all[i*chunkBytes : min((i+1)*chunkBytes, len(all))]
			return b.putBlob(gctx, chunkKey(s, i), part)
		})
	}
	return g.Wait()
}

// putBlob writes one key that nobody else writes, riding out an outage until ctx ends.
func (b *Bus) putBlob(ctx context.Context, key string, value []byte) error {
	retry := newBackoff()
	for index := uint64(0); ; {
		if err := b.writer.limit.Wait(ctx); err != nil {
			return fmt.Errorf("%w: write %s: %w", ErrUnavailable, key, err)
		}
		ok, err := b.store.Put(ctx, key, value, index)
		if err == nil && ok {
			return nil
		}
		var p *Pair
		if err == nil {
			p, err = b.store.Get(ctx, key)
		}
		switch {
		case err == nil && p != nil && bytes.Equal(p.Value, value):
			return nil
		case err == nil && p != nil:
			index = p.ModifyIndex
		case err == nil:
			index = 0
		case !errors.Is(err, ErrUnavailable) || ctx.Err() != nil:
			return fmt.Errorf("write %s: %w", key, err)
		default:
			b.storeDown(err)
			b.pause(ctx, retry, err)
		}
	}
}

// A PayloadError says why a payload that lies outside of its envelope cannot be had: a chunk is
// missing, or what is there is not what was signed.
type PayloadError struct {
	MessageID string
	Cause     error
}

func (e *PayloadError) Error() string {
	return fmt.Sprintf("payload of %s: %v", e.MessageID, e.Cause)
}
func (e *PayloadError) Unwrap() error { return e.Cause }

// Class is poison: another try reads the same.
func (e *PayloadError) Class() envelope.Class { return envelope.ClassPoison }

// chunkKey is where a chunk of a payload lies. Encrypting again gives other bytes, so a second try must not write over those
// of the first, which may have been accepted.
func chunkKey(s *envelope.Sealed, n int) string {
	if s.Encrypted() {
		return blobPrefix(s.SourceGateway, s.MessageID) + fmt.Sprintf("%.16s-%04d", s.PayloadSHA256, n)
	}
	return blobKey(s.SourceGateway, s.MessageID, n)
}

// Resolve returns the message with its payload, reading that from the store when it does not travel in
// the envelope, and decrypting it. Errors: *[PayloadError], trust.ErrNotForHere, trust.ErrCipher, or the store's.
func (b *Bus) Resolve(ctx context.Context, s *envelope.Sealed) (*envelope.Sealed, error) {
	s, err := b.load(ctx, s)
	if err != nil || s == nil || !s.Closed() {
		return s, err
	}
	key, err := b.contentKey(s, nil)
	if err != nil {
		return nil, err
	}
	return openWith(s, key)
}

// load returns the message with its payload, encrypted as it may be.
func (b *Bus) load(ctx context.Context, s *envelope.Sealed) (*envelope.Sealed, error) {
	if s == nil || !s.Claimed() || s.Encrypted() && !s.Closed() || int64(len(s.Payload)) == s.PayloadSize {
		return s, nil
	}
	parts := make([][]byte, chunksOf(s.PayloadSize))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(chunksAtOnce)
	for i := range parts {
		g.Go(func() (err error) {
			parts[i], err = b.store.Read(gctx, chunkKey(s, i))
			if err == nil && len(parts[i]) == 0 {
				err = &PayloadError{s.MessageID, fmt.Errorf("chunk %d of %d is missing", i+1, len(parts))}
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	full, err := s.WithPayload(bytes.Join(parts, nil))
	if err != nil {
		return nil, &PayloadError{s.MessageID, err}
	}
	return full, nil
}

// fetch gives the handler the message with its payload, decrypted. The returned func gives the memory back.
func (m *Incoming) fetch(ctx context.Context) (func(), error) {
	free, err := m.load(ctx)
	if err == nil {
		if err = m.decrypt(); err != nil {
			free()
			free = func() {}
		}
	}
	return free, err
}

// load reads a payload that lies outside of the envelope, waiting for memory and for a store that is away. The
// returned func gives the memory back.
func (m *Incoming) load(ctx context.Context) (func(), error) {
	j := m.j
	m.env = j.env
	if !j.env.Claimed() {
		return func() {}, nil
	}
	b := j.ib.b
	n := min(j.env.PayloadSize, resolvedBytes)
	if err := b.payloads.Acquire(ctx, n); err != nil {
		return func() {}, err
	}
	free := func() { b.payloads.Release(n) }
	retry := newBackoff()
	for {
		full, err := b.load(ctx, j.env)
		if err == nil {
			m.env = full
			return free, nil
		}
		if !errors.Is(err, ErrUnavailable) || ctx.Err() != nil {
			free()
			return func() {}, err
		}
		b.storeDown(err)
		b.pause(ctx, retry, err)
	}
}

// dropBlobs deletes chunks of gw that nobody will ask for: of messages that ended, or whose lifetime
// is over, longer ago than answers are kept, unless they lie in the dead letters.
func (b *Bus) dropBlobs(ctx context.Context, gw string, fence Op) (dropped int, err error) {
	prefix := blobsRoot + gw + "/"
	keys, err := b.store.Keys(ctx, prefix, "")
	if err != nil {
		return 0, fmt.Errorf("list %s: %w", prefix, err)
	}
	seen := map[string]bool{}
	for _, k := range keys {
		id, _, ok := strings.Cut(k[len(prefix):], "/")
		if !ok || seen[id] {
			continue
		}
		seen[id] = true
		keep, err := b.keepBlob(ctx, gw, id)
		if err != nil {
			return dropped, err
		}
		if keep {
			continue
		}
		if _, err := b.store.Txn(ctx, []Op{fence, {Verb: OpDeleteTree, Key: blobPrefix(gw, id)}}); err != nil {
			return dropped, fmt.Errorf("delete %s: %w", blobPrefix(gw, id), err)
		}
		dropped++
	}
	return dropped, nil
}

func (b *Bus) keepBlob(ctx context.Context, gw, id string) (bool, error) {
	raw, err := b.store.Read(ctx, blobAboutKey(gw, id))
	if err != nil {
		return false, fmt.Errorf("read chunks of %s: %w", id, err)
	}
	var about blobAbout
	if json.Unmarshal(raw, &about) != nil {
		//nolint:nilerr // its description is gone: it is kept as long as anything can ask for it
		return b.blobOrphans.keep(id, time.Now().Add(envelope.MaxTTL)), nil
	}
	age := b.now().Sub(about.CreatedAt.Time)
	if age < b.cfg.ResultRetention {
		return true, nil
	}
	p, err := b.store.Read(ctx, deadKey(about.To, id))
	if err != nil || len(p) > 0 {
		return true, err
	}
	if p, err = b.store.Read(ctx, pendingKey(about.To, id)); err != nil || len(p) > 0 {
		return true, err
	}
	if age > about.TTL.Duration()+2*envelope.DefaultSkew+b.cfg.ResultRetention {
		return false, nil
	}
	// It ended before its time, or still waits in a lane.
	st := &Status{MessageID: id}
	if _, err := b.findReceipt(ctx, st); err != nil {
		return true, err
	}
	return !st.Facts.Acked || b.now().Sub(st.Delivery.AckedAt.Time) < b.cfg.ResultRetention, nil
}

// orphans remembers when something was first seen without what explains it.
type orphans map[string]time.Time

// keep reports whether id is to be kept: until the moment that was set when it was seen first.
func (o orphans) keep(id string, until time.Time) bool {
	t, ok := o[id]
	if !ok {
		o[id] = until
		return true
	}
	if time.Now().Before(t) {
		return true
	}
	delete(o, id)
	return false
}
