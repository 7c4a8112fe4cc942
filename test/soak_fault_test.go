package test

import (
	"context"
	"sync"
	"syscall"
	"time"

	"github.com/gatemesh/gatemesh/bus/consul/cluster"
	"github.com/gatemesh/gatemesh/envelope"
)

// soakFault is something that happens.
type soakFault struct {
	name string
	do   func(s *soak)
}

// soakFaults are what happens all along; each leaves the mesh able to go on.
var soakFaults = []soakFault{
	{"gateway kill -9", func(s *soak) {
		p := s.any()
		p.end(syscall.SIGKILL)
		p.revive()
	}},
	{"gateway SIGTERM", func(s *soak) {
		p := s.any()
		p.end(syscall.SIGTERM)
		p.revive()
	}},
	{"gateway's clock changed", func(s *soak) {
		p := s.any()
		p.end(syscall.SIGKILL)
		// Two of them are never further apart than the allowed skew: beyond, mail dies, as bus/clock_test.go says.
		p.skew = time.Duration(s.rng.Int64N(int64(envelope.DefaultSkew))) - envelope.DefaultSkew/2
		p.revive()
	}},
	{"gateway stopped and continued", func(s *soak) {
		p := s.any()
		_ = p.cmd.Process.Signal(syscall.SIGSTOP)
		s.idle(time.Duration(2+s.rng.IntN(7)) * time.Second)
		_ = p.cmd.Process.Signal(syscall.SIGCONT)
	}},
	{"consul leader killed", func(s *soak) { s.killServer(true) }},
	{"consul follower killed", func(s *soak) { s.killServer(false) }},
	{"consul restarted, all three", func(s *soak) {
		for i := range s.c.Servers() {
			_ = s.c.Kill(i)
		}
		var wg sync.WaitGroup
		for i := range s.c.Servers() { // together: none of them has a leader alone
			wg.Add(1)
			go func() {
				defer wg.Done()
				s.restart(i)
			}()
		}
		wg.Wait()
	}},
	{"partition: refused", func(s *soak) { s.cut(cluster.CableRefuses) }},
	{"partition: silent", func(s *soak) { s.cut(cluster.CableHangs) }},
	{"connections reset", func(s *soak) {
		p := s.any()
		for range 5 {
			p.cable.Set(cluster.CableResets)
			s.idle(50 * time.Millisecond)
			p.cable.Set(cluster.CableWhole)
			s.idle(100 * time.Millisecond)
		}
	}},
}

func (s *soak) any() *soakProcess { return s.nodes[s.rng.IntN(len(s.nodes))] }

func (s *soak) cut(state cluster.CableState) {
	p := s.any()
	p.cable.Set(state)
	s.idle(time.Duration(1+s.rng.IntN(5)) * time.Second)
	p.cable.Set(cluster.CableWhole)
}

func (s *soak) killServer(leader bool) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	i, err := s.c.Leader(ctx)
	if err != nil {
		s.t.Errorf("the test finds no leader: %v", err)
		return
	}
	if !leader {
		i = (i + 1 + s.rng.IntN(2)) % s.c.Servers()
	}
	if err := s.c.Kill(i); err != nil {
		s.t.Errorf("the test cannot kill server %d: %v", i, err)
		return
	}
	s.idle(time.Second)
	s.restart(i)
}

func (s *soak) restart(i int) {
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	if err := s.c.Restart(ctx, i); err != nil {
		s.t.Errorf("the test cannot restart server %d: %v", i, err)
	}
}

// idle lets the fault last. It is the fault, not a wait for something.
func (s *soak) idle(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	<-t.C
}
