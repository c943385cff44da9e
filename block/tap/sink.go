package tap

import (
	"vmscope/block/nbd"
	"vmscope/internal/ring"
)

// sink is the disk that QEMU's mirror job writes to: it takes everything and keeps nothing. It reads as zeroes; the job
// never asks.
type sink struct {
	feed *feed
	size int64
}

func newSink(f *feed, size int64) *sink {
	f.ring.WakeLate()
	return &sink{f, size}
}

func (s *sink) Size() int64 { return s.size }

func (s *sink) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	return len(p), nil
}

func (s *sink) Answered() { s.feed.ring.Answered() }

func (s *sink) WritePayload(p *nbd.Payload, off int64, f nbd.Flags) error {
	w := s.feed.begin(off, p.Len(), f&nbd.FUA != 0)
	if d := w.data(); d != nil {
		if _, err := p.Read(d); err != nil {
			w.abandon(false)
			return err
		}
	}
	w.publish()
	return nil
}

func (s *sink) Flush() error {
	s.feed.other(ring.Flush, 0, 0, false)
	return nil
}

func (s *sink) Trim(off, n int64, f nbd.Flags) error {
	s.feed.other(ring.Discard, off, n, f&nbd.FUA != 0)
	return nil
}

func (s *sink) Zero(off, n int64, f nbd.Flags) error {
	s.feed.other(ring.Zeroes, off, n, f&nbd.FUA != 0)
	return nil
}
