package test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"time"

	"github.com/gatemesh/gatemesh/bus"
)

// ballastKey is written to make servers write; it lies beside the mesh.
const ballastKey = "soak-ballast"

const (
	noSpace = "no space left on device"
	// sealed is what a server says, for ever, whose disk was full in the moment when its log began a new file: Consul's
	// own trouble (raft-wal), and only a restart of that server ends it.
	sealed = "segment is sealed"
)

// diskFaults are there where disks can be filled.
var diskFaults = []soakFault{
	{"consul leader's disk full", func(s *soak) { s.fullDisks(true, 1) }},
	{"consul follower's disk full", func(s *soak) { s.fullDisks(false, 1) }},
	{"consul disks full, two of three", func(s *soak) { s.fullDisks(true, 2) }},
}

// fullDisks fills the disks of some servers until each has felt it, and gives the space back. Consul goes on by
// itself then: nothing is restarted.
func (s *soak) fullDisks(leader bool, n int) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 90*time.Second)
	defer cancel()
	first, err := s.c.Leader(ctx)
	if err != nil {
		s.t.Errorf("the test finds no leader: %v", err)
		return
	}
	if !leader {
		first = (first + 1) % s.c.Servers()
	}
	felt, stuck := map[int]int{}, map[int]int{}
	for k := range n {
		i := (first + k) % s.c.Servers()
		stuck[i] = strings.Count(s.c.Log(i), sealed)
		felt[i] = strings.Count(s.c.Log(i), noSpace)
		if err := s.disks[i].fill(); err != nil {
			s.t.Errorf("the test cannot fill a disk: %v", err)
		}
	}
	// Enough to leave the file that its log is being written to; a write that nobody can take is refused in one line.
	refused := false
	for k := 0; len(felt) > 0 || n > 1 && !refused; k++ {
		err := s.ballast(ctx, byte(k))
		if err != nil {
			refused = true
			if !errors.Is(err, bus.ErrUnavailable) || strings.Contains(err.Error(), "\n") {
				s.t.Errorf("with a full disk the store says: %v", err)
			}
		}
		for i, before := range felt {
			if strings.Count(s.c.Log(i), noSpace) > before {
				delete(felt, i)
			}
		}
		if ctx.Err() != nil {
			s.t.Errorf("full disks were not felt by servers %v (refused: %v)", felt, refused)
			break
		}
	}
	s.idle(time.Second)
	for k := range n {
		if err := s.disks[(first+k)%s.c.Servers()].free(); err != nil {
			s.t.Errorf("the test cannot free a disk: %v", err)
		}
	}
	back, stop := context.WithTimeout(s.t.Context(), time.Minute)
	defer stop()
	unstick := func() {
		for i, before := range stuck {
			if strings.Count(s.c.Log(i), sealed) > before {
				s.say("server %d is stuck (%s): it is restarted, as its operator would", i+1, sealed)
				delete(stuck, i)
				s.restart(i)
			}
		}
	}
	defer unstick()
	for k := 0; s.ballast(back, byte(k)) != nil; k++ {
		unstick()
		if back.Err() != nil {
			s.t.Error("with space again the store does not go on by itself")
			return
		}
	}
	if _, err := s.store.Txn(back, []bus.Op{{Verb: bus.OpDelete, Key: ballastKey}}); err != nil {
		s.say("the ballast stays: %v", err)
	}
	s.idle(time.Second) // what was written reaches the server that lagged, which then is stuck or not
}

// ballast writes a big value, for at most five seconds.
func (s *soak) ballast(ctx context.Context, k byte) error {
	call, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := s.store.Txn(call, []bus.Op{{Verb: bus.OpSet, Key: ballastKey, Value: bytes.Repeat([]byte{'a' + k%26}, 256<<10)}})
	if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		err = bus.ErrUnavailable // no answer in five seconds is none
	}
	return err
}
