package gateway

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// longerThanBackoff is longer than all that the bus, with its short backoff here, and the wait for a settled effect take together.
const longerThanBackoff = 5 * time.Second

// A vendor that does not answer for a while does not make a post unknown: it is asked until it answers, for as long as that makes sense.
func TestFindIsPatient(t *testing.T) {
	for name, tc := range map[string]struct {
		answers  int32 // after so many questions
		patience time.Duration
		err      error
		class    string
		asked    int32
		lasts    time.Duration // at least, between the first two questions
	}{
		"an outage":          {answers: findTries, patience: time.Hour, err: errors.New("503"), asked: findTries + 1},
		"a rate limit":       {answers: 1, err: NotSent(longerThanBackoff, errors.New("429")), asked: 2, lasts: longerThanBackoff},
		"for ever":           {answers: 1000, err: errors.New("503"), class: "unknown", asked: findTries},
		"credentials":        {answers: 1000, patience: time.Hour, err: BadCredentials("add a scope", errors.New("missing_scope")), class: "unknown", asked: findTries},
		"surely not to know": {answers: 1000, patience: time.Hour, err: Rejected(errors.New("no such room")), class: "unknown", asked: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			var first, last atomic.Int64
			s := &script{post: lostFirst, find: func(Post) (bool, error) {
				first.CompareAndSwap(0, time.Now().UnixNano())
				last.Store(time.Now().UnixNano())
				if asked.Add(1) > tc.answers {
					return true, nil
				}
				return false, tc.err
			}}
			n, in := scripted(t, s, nil, echoAgent("bob"))
			n.accounts["channel-test-default"].patience = tc.patience
			if err := in.Accept(within(t), dm("1", "hello")); err != nil {
				t.Fatal(err)
			}
			tr := n.over("1")
			if string(tr.Facts.Class) != tc.class || asked.Load() != tc.asked {
				t.Errorf("class %q after %d questions (%s)", tr.Facts.Class, asked.Load(), tr.Facts.Reason)
			}
			if d := time.Duration(last.Load() - first.Load()); d < tc.lasts {
				t.Errorf("asked again after %s, the vendor wanted %s", d, tc.lasts)
			}
			if told := len(s.texts()) == 2 && strings.HasPrefix(s.texts()[1], "My answer to this may not"); told != (tc.class != "") {
				t.Errorf("posted %q", s.texts())
			}
		})
	}
}
