package ring

import "os"

// Gauge looks at a ring without taking part.
type Gauge struct{ s *shared }

// NewGauge opens a ring's memory, which stays the caller's.
func NewGauge(memory *os.File) (*Gauge, error) {
	s, err := open(memory)
	if err != nil {
		return nil, err
	}
	return &Gauge{s}, nil
}

// Beat is a number that changes as long as the producer lives.
func (g *Gauge) Beat() uint64 { return g.s.word(hdrBeat).Load() }

// Finished reports whether the producer has said that its work is done.
func (g *Gauge) Finished() bool { return g.s.word(hdrDone).Load() != 0 }

// Finish says that the work is done: nobody is to start another producer.
func (p *Producer) Finish() { p.s.word(hdrDone).Store(1) }

// Finished reports whether Finish was called.
func (p *Producer) Finished() bool { return p.s.word(hdrDone).Load() != 0 }
