"""Real faults on real servers, and a checker that judges what came of it.

diary       append-only files that tasks, clients and the harness write
tasks       what the jobs run
client      a notebook's stand-in, a process that can be killed
arena       servers, daemons and clients of one trial
faults      what is done to them
grounds     what an arena stands on: one server each or three, networks, small disks
groundfaults  what is possible there only: cuts, full disks, lost data
schedule    a seed becomes a ground, jobs, faults and times
evidence    what etcd's history and the processes themselves say afterwards
checker     judges diaries and evidence; knows nothing of nbsched
planted     bugs that are patched into real processes, each of which must be caught
witness     what is put into the daemons: notes, a wrong clock, planted bugs
proxy       a connection that can be cut
trial       carries one out: arena, what is done to it, the verdict
rehearsals  trials with a fixed story
run         trials by name, or many seeds with a summary
"""
