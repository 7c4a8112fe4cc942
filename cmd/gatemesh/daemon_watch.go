package main

import (
	"context"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/hashicorp/go-hclog"
)

// settle is how long a file must have been left alone: editors write in several steps.
const settle = 200 * time.Millisecond

// watchFile sends on the channel whenever the file has changed; several changes may come as
// one. It watches the directory, because editors and Kubernetes replace files instead of
// writing them. Without it (too many watches, say) SIGHUP still works.
func watchFile(ctx context.Context, path string, log hclog.Logger) <-chan struct{} {
	changed := make(chan struct{}, 1)
	w, err := fsnotify.NewWatcher()
	if err == nil {
		err = w.Add(filepath.Dir(path))
	}
	if err != nil {
		log.Warn("cannot watch a file; send SIGHUP to have it read again", "file", path, "error", err)
		if w != nil {
			_ = w.Close()
		}
		return changed
	}
	go func() {
		defer w.Close()
		quiet := time.NewTimer(time.Hour)
		quiet.Stop()
		real, _ := filepath.EvalSymlinks(path)
		for {
			select {
			case <-ctx.Done():
				return
			case ev, ok := <-w.Events:
				if !ok {
					return
				}
				now, _ := filepath.EvalSymlinks(path)
				same := filepath.Clean(ev.Name) == filepath.Clean(path) && ev.Op&^fsnotify.Chmod != 0
				if same || now != real {
					real = now
					quiet.Reset(settle)
				}
			case <-quiet.C:
				select {
				case changed <- struct{}{}:
				default:
				}
			case err, ok := <-w.Errors:
				if !ok {
					return
				}
				log.Warn("watch of a file", "file", path, "error", err)
			}
		}
	}()
	return changed
}
