// Package fsoracle judges what vmscope says of a file system by what the guest itself says.
//
// A Replayer holds a tree and does to it what events tell, as strictly as somebody would who knows nothing but the
// events: what is impossible where it stands is a finding. Compare then sets the tree beside the one that the guest's
// own system calls showed. A Recording keeps a disk, the writes that a real guest made to it, and the guest's trees at
// several places, so that inference can be tested without a guest.
//
// It is test gear: it shares no code with the readers of file systems that it judges.
package fsoracle
