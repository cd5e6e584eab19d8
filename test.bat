@echo off
rem Makes .venv in this folder if it is not there, and runs the tests. Options go to pytest: test.bat tests\test_settings.py
setlocal
cd /d "%~dp0"
call :find_python || goto failed
%FOUND% environment.py || goto failed
set "HF_HUB_OFFLINE=1"
set "OMP_NUM_THREADS=1"
".venv\Scripts\python.exe" -m pytest -n auto --maxprocesses 4 --dist loadfile %*
set "RESULT=%ERRORLEVEL%"
call :hold
exit /b %RESULT%

:find_python
set "FOUND="
for %%P in ("py -3.11" "py -3.12" "py -3.13" "py -3.10" "python") do (
    if not defined FOUND %%~P -c "import sys; sys.exit(sys.version_info[:2] not in [(3, 10), (3, 11), (3, 12), (3, 13)])" >nul 2>&1 && set "FOUND=%%~P"
)
if defined FOUND exit /b 0
echo No Python from 3.10 to 3.13 was found. Install Python 3.11, with its launcher "py", and run this again.
exit /b 1

:failed
call :hold
exit /b 1

:hold
rem A window that a double click opened stays open until a key is pressed: its command line names this file. Folders' names may hold
rem an ampersand, so the line is compared within quotes and never printed.
if defined CI exit /b 0
set "LINE=%CMDCMDLINE:"=%"
setlocal EnableDelayedExpansion
if not "!LINE:%~nx0=!"=="!LINE!" pause
exit /b 0
