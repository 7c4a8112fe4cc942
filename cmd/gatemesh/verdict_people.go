package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

const (
	// askEvery is the pause between two questions, whether the ones before are answered or not: people do not wait for each other.
	askEvery = 250 * time.Millisecond
	// verdictPatience is how long a question may take to count as served, verdictDrain how long the last ones of a phase are waited for.
	verdictPatience = 30 * time.Second
	verdictDrain    = 90 * time.Second
	// pageLeaves is when a page goes to the next gateway: its question was not taken in. pagePause is between its tries.
	pageLeaves = 5 * time.Second
	pagePause  = 250 * time.Millisecond
	// auditQuiet is how long a page shows nothing more when it is looked at in the end.
	auditQuiet = 300 * time.Millisecond
)

// A verdictAsked is one question: what became of it as its page saw it.
type verdictAsked struct {
	id    string // of the conversation, and the question's own word
	at    time.Time
	took  time.Duration // until the page showed an answer; 0: it has shown none
	noted bool          // the answer is bobby's; else it says what became of the question
}

// verdictPeople ask, each question in a conversation of its own.
type verdictPeople struct {
	s   *verdictSite
	all []*verdictAsked
}

// during has people ask while a phase lasts, and waits until all have an answer, or for verdictDrain.
func (p *verdictPeople) during(ctx context.Context, phase verdictPhase) ([]*verdictAsked, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	fault := make(chan error, 1)
	go func() { fault <- phase.fault(ctx, p.s) }()
	var asked []*verdictAsked
	var wg sync.WaitGroup
	told, stop := context.WithCancel(ctx)
	defer stop()
	wg.Go(func() { p.s.narrate(told) })
	defer wg.Wait()
	defer cancel()
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	end := time.NewTimer(phase.lasts)
	defer end.Stop()
	for open := true; open; {
		select {
		case <-tick.C:
			q := &verdictAsked{id: envelope.NewID(), at: time.Now()}
			asked = append(asked, q)
			first := len(asked)
			wg.Go(func() { p.ask(ctx, q, first, phase.twice) })
		case err := <-p.s.failed:
			return nil, err
		case <-end.C:
			open = false
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err := <-fault; err != nil {
		return nil, err
	}
	stop()
	late := time.AfterFunc(verdictDrain, cancel)
	defer late.Stop()
	wg.Wait()
	p.all = append(p.all, asked...)
	return asked, nil
}

// ask opens the question's page until it shows an answer.
func (p *verdictPeople) ask(ctx context.Context, q *verdictAsked, first int, twice bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	said := gateway.ChatSaid{ID: envelope.NewID(), Text: "Ask Bobby to note " + q.id}
	var wg sync.WaitGroup
	defer wg.Wait()
	if twice {
		wg.Go(func() { p.page(ctx, q.id, first+1, said, func(string) bool { return false }) })
	}
	p.page(ctx, q.id, first, said, func(text string) bool {
		q.took, q.noted = time.Since(q.at), strings.HasSuffix(text, "noted "+q.id)
		return true
	})
	cancel()
}

// page is one browser's: it goes to another gateway, if there is one, when one does not answer, and says again what it does not see in the
// conversation. It ends with ctx, or when seen, which is told each word of the agent, says so.
func (p *verdictPeople) page(ctx context.Context, conversation string, first int, said gateway.ChatSaid, seen func(text string) bool) {
	for at := first; ctx.Err() == nil; at++ {
		n := p.s.nodes[at%len(p.s.nodes)]
		over, err := visit(ctx, n.addr, conversation, &said, seen)
		if over || err == nil || !sleep(ctx, pagePause) {
			return
		}
	}
}

var errNotTaken = errors.New("the gateway did not take it in")

// visit is one connection of a page: over says that seen has seen enough. Without said it only looks.
func visit(ctx context.Context, addr, conversation string, said *gateway.ChatSaid, seen func(text string) bool) (over bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	dial, end := context.WithTimeout(ctx, pageLeaves)
	c, _, err := websocket.Dial(dial, "ws"+strings.TrimPrefix(addr, "http")+"/v1/webchat?conversation="+url.QueryEscape(conversation), &websocket.DialOptions{Subprotocols: []string{gateway.StreamProtocol}})
	end()
	if err != nil {
		return false, err
	}
	defer func() { _ = c.CloseNow() }()
	c.SetReadLimit(maxFrame)
	leave := (*time.Timer)(nil)
	if said != nil {
		b, err := json.Marshal(said)
		if err != nil {
			return false, err
		}
		leave = time.AfterFunc(pageLeaves, func() { cancel(errNotTaken) })
		defer leave.Stop()
		if err := c.Write(ctx, websocket.MessageText, b); err != nil {
			return false, err
		}
	}
	for {
		_, b, err := c.Read(ctx)
		if err != nil {
			return false, err
		}
		var f gateway.ChatFrame
		if err := json.Unmarshal(b, &f); err != nil {
			return false, err
		}
		switch {
		case said != nil && f.Refused == said.ID:
			return false, fmt.Errorf("%w: %s", errNotTaken, f.Reason)
		case said != nil && (f.Accepted == said.ID || f.Entry != nil && f.Entry.ID == said.ID):
			leave.Stop()
		}
		if f.Entry != nil && f.Entry.Who == "agent" && seen(f.Entry.Text) {
			return true, nil
		}
	}
}

// audit looks at every page once more, at whatever gateway answers, and at the file.
func (p *verdictPeople) audit(ctx context.Context, f *verdictFigures) error {
	done, err := p.effects()
	if err != nil {
		return err
	}
	slots := make(chan struct{}, 16)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	for i, q := range p.all {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			answers, err := p.shown(ctx, q.id, i)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = err
				return
			}
			f.judge(q, answers, done[q.id])
		})
	}
	wg.Wait()
	return failed
}

// shown is how many answers a page shows.
func (p *verdictPeople) shown(ctx context.Context, conversation string, first int) (answers int, _ error) {
	for at := first; at < first+2*len(p.s.nodes); at++ {
		answers = 0
		quiet, cancel := context.WithCancel(ctx)
		timer := time.AfterFunc(pageLeaves, cancel)
		opened := false
		_, _ = visit(quiet, p.s.nodes[at%len(p.s.nodes)].addr, conversation, nil, func(string) bool {
			opened = true
			answers++
			timer.Reset(auditQuiet)
			return false
		})
		timer.Stop()
		cancel()
		if opened || ctx.Err() != nil {
			return answers, ctx.Err()
		}
	}
	return 0, nil // no page shows any
}

// effects counts the lines of the file, by question.
func (p *verdictPeople) effects() (map[string]int, error) {
	done := map[string]int{}
	file, err := os.Open(p.s.effects)
	if errors.Is(err, fs.ErrNotExist) {
		return done, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		done[lines.Text()]++
	}
	return done, nil
}

// residentMB is the memory that processes have, in MB; 0 where the kernel does not say it.
func residentMB(pids []int) (sum float64) {
	for _, pid := range pids {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
		if err != nil {
			continue
		}
		if fields := strings.Fields(string(b)); len(fields) > 1 {
			pages, _ := strconv.Atoi(fields[1]) // the kernel wrote it
			sum += float64(pages*os.Getpagesize()) / (1 << 20)
		}
	}
	return sum
}
