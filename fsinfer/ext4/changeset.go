package ext4

// changeSet finds changed inodes by number. A transaction logs whole blocks of the inode tables, so that numbers come in runs, and
// most are asked for in their order: a map of single numbers took a tenth of the time of a large transaction.
type changeSet struct {
	runs map[uint32]*changeRun // by number / changesInRun
	last *changeRun            // the run found last, nil for none
	at   uint32
}

const changesInRun = 16

type changeRun [changesInRun]*change

// of gives the change of an inode, nil if it did not change.
func (s *changeSet) of(ino uint32) *change {
	if at := ino / changesInRun; s.last == nil || s.at != at {
		run := s.runs[at]
		if run == nil {
			return nil
		}
		s.last, s.at = run, at
	}
	return s.last[ino%changesInRun]
}

func (s *changeSet) put(c *change) {
	at := c.ino / changesInRun
	run := s.runs[at]
	if run == nil {
		run = new(changeRun)
		s.runs[at] = run
	}
	run[c.ino%changesInRun] = c
}
