package xenbus

import (
	"context"
	"strconv"
	"sync"
)

// Watch tells of changes at a path and below it. Next is for one goroutine.
type Watch struct {
	c     *Client
	path  string
	token string
	bell  chan struct{} // has room for one

	mu      sync.Mutex
	changed []string // each once, in the order of their first change
	seen    map[string]bool
}

// maxChanged bounds what waits in a watch. Beyond it, all that is known is that something changed.
const maxChanged = 1024

// Watch begins to watch a path, which need not be there. The first event comes at once, for path itself. Special paths are
// @introduceDomain and @releaseDomain: domains come and go.
func (c *Client) Watch(ctx context.Context, path string) (*Watch, error) {
	w := &Watch{c: c, path: path, bell: make(chan struct{}, 1), seen: map[string]bool{}}
	c.mu.Lock()
	for {
		c.next++
		w.token = "w" + strconv.FormatUint(uint64(c.next), 10)
		if c.watches[w.token] == nil {
			break
		}
	}
	c.watches[w.token] = w // events may be there before the answer
	c.mu.Unlock()
	_, err := c.on(ctx, opWatch, 0, path, append([]byte(w.token), 0))
	if err != nil {
		w.forget()
		if ctx.Err() != nil { // it may have been made all the same
			c.on(context.WithoutCancel(ctx), opUnwatch, 0, path, append([]byte(w.token), 0))
		}
		return nil, err
	}
	return w, nil
}

// fire notes that path changed. The client's lock is held.
func (w *Watch) fire(path string) {
	w.mu.Lock()
	switch {
	case w.seen[path] || w.seen[w.path]:
	case len(w.changed) == maxChanged:
		w.changed = append(w.changed[:0], w.path)
		clear(w.seen)
		w.seen[w.path] = true
	default:
		w.changed = append(w.changed, path)
		w.seen[path] = true
	}
	w.mu.Unlock()
	select {
	case w.bell <- struct{}{}:
	default:
	}
}

// take takes the oldest change.
func (w *Watch) take() (string, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.changed) == 0 {
		return "", false
	}
	path := w.changed[0]
	w.changed = w.changed[1:]
	delete(w.seen, path)
	return path, true
}

// Next waits for a change and says where: at or below the path that is watched. Changes that nobody took yet count as one,
// and the path that is watched stands for all below it: what is there now has to be read anew.
func (w *Watch) Next(ctx context.Context) (path string, err error) {
	for {
		if path, ok := w.take(); ok {
			return path, nil
		}
		select {
		case <-w.bell:
		case <-w.c.done:
			return "", &Error{"watch", w.path, w.c.failure()}
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

// Changes gives a channel that can be read when Next has something to tell, or would have had: for those who wait for more
// than one thing. Whoever reads it calls Drain then.
func (w *Watch) Changes() <-chan struct{} { return w.bell }

// Drain forgets what waits: for who reads anew what there is, wherever it changed.
func (w *Watch) Drain() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.changed = w.changed[:0]
	clear(w.seen)
}

func (w *Watch) forget() {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	delete(w.c.watches, w.token)
}

// Close ends the watch. It waits for the store's answer.
func (w *Watch) Close() error {
	w.forget()
	_, err := w.c.on(context.Background(), opUnwatch, 0, w.path, append([]byte(w.token), 0))
	return err
}
